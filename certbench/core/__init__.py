"""A certifier: threat model, classifier, certificate, evidence, search, options, the front door `certify`."""
