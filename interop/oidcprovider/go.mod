module github.com/gatebook/gatebook/interop/oidcprovider

go 1.26.8

replace github.com/gatebook/gatebook => ../..

require github.com/gatebook/gatebook v0.0.0
