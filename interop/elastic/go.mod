module github.com/gatebook/gatebook/interop/elastic

go 1.26.8

require (
	github.com/elastic/go-elasticsearch/v9 v9.5.2
	github.com/gatebook/gatebook v0.0.0
	github.com/opensearch-project/opensearch-go/v4 v4.8.1
)

replace github.com/gatebook/gatebook => ../..
