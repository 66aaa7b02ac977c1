module github.com/gatebook/gatebook/interop/wycheproof

go 1.26.8

require (
	github.com/c2sp/wycheproof v0.0.0-20260902155932-3fa63dd0344a
	github.com/gatebook/gatebook v0.0.0
)

require github.com/go-jose/go-jose/v4 v4.1.9 // indirect

replace github.com/gatebook/gatebook => ../..
