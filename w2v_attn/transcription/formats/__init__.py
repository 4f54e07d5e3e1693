"""Files for one recording with its text and times: subtitles, tables, and annotations of Praat, ELAN and NIST."""
