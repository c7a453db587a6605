# Real data sets, unpacked into $LIMBECK_DATA (default ~/.cache/limbeck/data) in the layout of the Hugging Face hub.
DATA_COLLECTION ?= ../shared/data

data: install
	@if [ -f $(DATA_COLLECTION)/unpack.py ]; then \
	  $(abspath $(BIN))/python $(DATA_COLLECTION)/unpack.py; \
	else \
	  echo "No collection at $(DATA_COLLECTION). Limbeck looks for data sets in \$$LIMBECK_DATA (default ~/.cache/limbeck/data), then on the hub."; exit 1; \
	fi
