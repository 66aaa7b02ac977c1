package config

import (
	"fmt"
	"slices"
	"strings"
)

// The kinds of holders of administrative roles. The first four are names in a
// client certificate, the others what a token of an issuer says.
const (
	HolderCN    = "cn"
	HolderDNS   = "dns"
	HolderEmail = "email"
	HolderURI   = "uri"
	HolderRole  = "role"
	HolderSub   = "sub"
)

// Holder is who holds an administrative role.
type Holder struct{ Kind, Issuer, Name string }

// ParseHolder reads a holder. What is none has no kind.
func ParseHolder(s string) Holder {
	kind, rest, _ := strings.Cut(s, ":")
	h := Holder{Kind: kind, Name: rest}
	switch kind {
	case HolderRole, HolderSub:
		h.Issuer, h.Name, _ = strings.Cut(rest, ":")
		if h.Issuer == "" {
			return Holder{}
		}
	case HolderCN, HolderDNS, HolderEmail, HolderURI:
	default:
		return Holder{}
	}
	if h.Name == "" {
		return Holder{}
	}
	return h
}

// OfToken reports whether a token says it and not a certificate.
func (h Holder) OfToken() bool { return h.Kind == HolderRole || h.Kind == HolderSub }

// Lists returns the holders of each role by the role's key.
func (r *AdminRoles) Lists() map[string][]string {
	return map[string][]string{"reader": r.Reader, "reveal": r.Reveal, "operator": r.Operator, "privacy": r.Privacy, "decide": r.Decide}
}

func (d *decoder) checkAdmin(f *File) {
	a := &f.Admin
	_, served := d.at["admin.address"]
	holders := 0
	for _, role := range []string{"reader", "reveal", "operator", "privacy", "decide"} {
		for i, text := range a.Roles.Lists()[role] {
			holders++
			if served {
				d.checkHolder(f, ParseHolder(text), fmt.Sprintf("admin.roles.%s[%d]", role, i))
			}
		}
	}
	if !served {
		for _, key := range []string{"admin.tls", "admin.roles"} {
			if _, ok := d.at[key]; ok {
				d.report(d.where(key), key, "it has no effect without an address", "add address, or remove it; the socket needs neither")
			}
		}
		return
	}
	if a.TLS == nil && d.quiet("admin.tls") {
		d.report(d.where("admin.address"), "admin.address", "administration over TCP without tls", "add tls: {certificates: [{cert: admin.crt, key: admin.key}], client_ca: admins.pem}")
	}
	if holders == 0 && d.quiet("admin.roles") {
		d.report(d.where("admin.address"), "admin.address", "nobody holds a role, so every call would be refused", `add roles: {reader: ["cn:NAME"]}`)
	}
}

// checkHolder reports holders who could never come.
func (d *decoder) checkHolder(f *File, h Holder, path string) {
	switch {
	case h.Kind == "":
	case !h.OfToken():
		if f.Admin.TLS != nil && f.Admin.TLS.ClientCA == "" && d.quiet("admin.tls") {
			d.report(d.where(path), path, "a name in a client certificate, and no client_ca to check one with", "add admin.tls.client_ca")
		}
	default:
		known(d, path, "issuer", h.Issuer, issuersByName(f), slices.ContainsFunc(f.Issuers, func(i Issuer) bool { return i.Name == h.Issuer }))
	}
}

func issuersByName(f *File) map[string]*Issuer {
	out := map[string]*Issuer{}
	for i := range f.Issuers {
		out[f.Issuers[i].Name] = &f.Issuers[i]
	}
	return out
}
