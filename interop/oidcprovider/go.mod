module github.com/gatebook/gatebook/interop/oidcprovider

go 1.26.8

replace github.com/gatebook/gatebook => ../..
