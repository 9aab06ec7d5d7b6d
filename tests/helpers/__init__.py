"""What tests share: independent implementations, checks that several folders of tests run, and the fuzzer."""
