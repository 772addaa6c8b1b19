"""What stands in the sections of the page: functions from a Subject to what a template of templates/sections shows, or None."""
