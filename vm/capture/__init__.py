"""What was on a wire: reads pcap and pcapng, and says who talked with whom, under which names."""
