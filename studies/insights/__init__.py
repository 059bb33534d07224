"""What the history of trials teaches, with its uncertainty: functions of one table of trials (`history`)."""
