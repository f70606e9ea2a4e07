"""From what one pass collected to measurements: functions of arrays, without models or images."""
