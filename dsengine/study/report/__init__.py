"""`dsengine report`: `write.write_report` makes one HTML file about runs and their evaluations; `page` says what is in it, in order."""
