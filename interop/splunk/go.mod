module github.com/gatebook/gatebook/interop/splunk

go 1.26.8

replace github.com/gatebook/gatebook => ../..

require github.com/gatebook/gatebook v0.0.0-00010101000000-000000000000
