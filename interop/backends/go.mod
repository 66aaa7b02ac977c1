module github.com/gatebook/gatebook/interop/backends

go 1.26.8

require (
	github.com/gatebook/gatebook v0.0.0
	golang.org/x/net v0.62.0
)

require golang.org/x/text v0.43.0 // indirect

replace github.com/gatebook/gatebook => ../..
