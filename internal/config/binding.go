package config

// routeBinding checks what a route demands of tokens beyond who issued them.
func (d *decoder) routeBinding(f *File, r *Route, path string) {
	for key, on := range map[string]bool{
		"dpop": r.DPoP != "", "dpop_nonce": r.DPoPNonce, "certificate_bound": r.CertBound != "", "one_time": r.OneTime,
	} {
		if on && r.Public {
			d.report(d.where(path+"."+key), path+"."+key, key+" on a public route", "remove it, or replace public by authn")
		}
	}
	if r.DPoP != "" && len(f.DPoP.Origins) == 0 && d.quiet("dpop") {
		at := path + ".dpop"
		d.report(d.where(at), at, "dpop on a route, but dpop.origins is not set", "add dpop: {origins: [https://api.example.com]}, the URL under which clients reach this gate")
	}
	if r.DPoPNonce && r.DPoP == "" {
		at := path + ".dpop_nonce"
		d.report(d.where(at), at, "dpop_nonce without dpop", "add dpop: required, or remove it")
	}
}

// checkShared wants exactly one place for each secret.
func (d *decoder) checkShared(f *File) {
	if f.Valkey != nil {
		d.checkSecret(f.Valkey.Password, "valkey.password")
	}
	d.checkSecret(f.DPoP.NonceKey, "dpop.nonce_key")
}

// secrets looks at the files of secrets.
func (c *checker) secrets() {
	if v := c.f.Valkey; v != nil {
		c.secret("valkey.password", v.Password)
		if v.TLS != nil {
			c.authority("valkey.tls.ca", v.TLS.CA)
		}
	}
	c.secret("dpop.nonce_key", c.f.DPoP.NonceKey)
}
