module github.com/gatebook/gatebook/interop/slowhttp

go 1.26.8
