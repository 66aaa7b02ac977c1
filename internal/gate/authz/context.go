package authz

import (
	"math/bits"
	"net/netip"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go/types"
)

// tlsNone is context.tls on plaintext.
const tlsNone = "none"

// context makes the context record, of what the schema declares only the
// attributes in needs: the candidates cannot read the others, and each one
// costs time.
func (s *boundSchema) context(r *Request, p *principal, op *operation, needs ctxMask) types.Record {
	needs &= op.context
	m := make(types.RecordMap, bits.OnesCount16(uint16(needs)))
	if needs&ctxIP != 0 {
		addr := remoteIP(r)
		m["ip"] = types.IPAddr(netip.PrefixFrom(addr, addr.BitLen()))
	}
	if needs&ctxTime != 0 {
		m["time"] = types.NewDatetime(r.Now)
	}
	if needs&ctxMethod != 0 {
		m["method"] = types.String(r.Method)
	}
	if needs&ctxPath != 0 {
		m["path"] = types.String(r.Path)
	}
	if needs&ctxTLS != 0 {
		m["tls"] = types.String(tlsVersion(r))
	}
	if needs&ctxACR != 0 {
		m["acr"] = types.String(r.ACR)
	}
	if needs&ctxAMR != 0 {
		m["amr"] = p.amrSet
	}
	if needs&ctxScopes != 0 {
		m["scopes"] = p.scopeSet
	}
	if age := authAge(r); needs&ctxAuthAge != 0 && age > 0 {
		m["auth_age"] = types.Long(age)
	}
	if needs&ctxParams != 0 {
		m["params"] = params(r, op)
	}
	if needs&ctxBodySize != 0 && r.BodySize >= 0 {
		m["body_size"] = types.Long(r.BodySize)
	}
	if needs&ctxHeaders != 0 {
		m["headers"] = headers(r, op)
	}
	return types.NewRecord(m)
}

// momentOf is the stable part of the same context. amr and scopes are not in
// it because they belong to the principal.
func momentOf(r *Request, needs ctxMask) (m moment) {
	if needs&ctxIP != 0 {
		m.ip = remoteIP(r)
	}
	if needs&ctxMethod != 0 {
		m.method = r.Method
	}
	if needs&ctxTLS != 0 {
		m.tls = tlsVersion(r)
	}
	if needs&ctxACR != 0 {
		m.acr = r.ACR
	}
	if needs&ctxAuthAge != 0 {
		m.age = authAge(r)
	}
	return m
}

// remoteIP is the address in the one form that policies see.
func remoteIP(r *Request) netip.Addr { return r.RemoteIP.Unmap().WithZone("") }

func tlsVersion(r *Request) string {
	if r.TLSVersion == "" {
		return tlsNone
	}
	return r.TLSVersion
}

// authAge is in seconds, rounded up; 0 when unknown.
func authAge(r *Request) int64 {
	if r.AuthAge <= 0 {
		return 0
	}
	return int64((r.AuthAge-1)/time.Second) + 1
}

func params(r *Request, op *operation) types.Record {
	m := make(types.RecordMap, len(op.declared))
	for _, name := range op.declared {
		for _, p := range r.Params {
			if p.Name == name {
				m[types.String(name)] = types.String(p.Value)
			}
		}
	}
	return types.NewRecord(m)
}

// headers are the declared ones, each with all its values: those of repeated
// fields and those of a list in one field alike (RFC 9110 section 5.3), so that
// a value cannot hide behind another one.
func headers(r *Request, op *operation) types.Record {
	m := make(types.RecordMap, len(op.headers))
	for _, name := range op.headers {
		var vals []types.Value
		if r.Header != nil {
			for _, line := range r.Header(name) {
				for v := range strings.SplitSeq(line, ",") {
					if v = strings.Trim(v, " \t"); v != "" {
						vals = append(vals, types.String(v))
					}
				}
			}
		}
		m[types.String(name)] = types.NewSet(vals...)
	}
	return types.NewRecord(m)
}
