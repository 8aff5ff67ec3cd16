"""What a certifier is: threat model, classifier, certificate, evidence, search, options, the front door `certify`."""
