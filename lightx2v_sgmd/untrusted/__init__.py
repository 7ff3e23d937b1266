"""Reading what strangers made: model folders and the files in them. See README.md."""
