package config

import "slices"

// Findings collects what somebody else has found wrong with values of a file,
// in the form in which the file's own problems are told. It belongs to one
// goroutine.
type Findings struct {
	f *File
	r *reporter
}

// NewFindings makes an empty collection.
func (f *File) NewFindings() *Findings {
	return &Findings{f, newReporter(f.source.name, f.source.text)}
}

// Add notes that something is wrong with the value at a path of keys, such as
// issuers[0].audiences, or with what the file does not say there.
func (x *Findings) Add(path, what, hint string) {
	x.r.report(nearest(x.f.source.at, path), path, what, hint)
}

// Problems returns what was added, nil if nothing was.
func (x *Findings) Problems() *Problems { return x.r.problems() }

// Quote writes a text from outside so that it is safe to print, and short.
func Quote(s string) string { return quote(s) }

// Presets are the names of all presets that can accept a token.
func Presets() (names []string) {
	for _, p := range presets() {
		if p.refuse == "" {
			names = append(names, p.name)
		}
	}
	return names
}

// WithPreset is the issuer with all that another preset sets, for trying it.
func (i *Issuer) WithPreset(name string) *Issuer {
	out := &Issuer{
		Name: i.Name, Preset: name, Issuer: i.Issuer, Audiences: slices.Clone(i.Audiences), Skew: i.Skew,
		JWKS: i.JWKS, CA: i.CA, Introspection: i.Introspection,
	}
	out.applyPreset()
	return out
}
