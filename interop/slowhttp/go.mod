module github.com/gatebook/gatebook/interop/slowhttp

go 1.26.8

require github.com/gatebook/gatebook v0.0.0

replace github.com/gatebook/gatebook => ../..
