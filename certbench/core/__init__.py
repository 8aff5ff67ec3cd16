"""What a certifier is: threat model, classifier, certificate, search, options, and the front door `certify`."""
