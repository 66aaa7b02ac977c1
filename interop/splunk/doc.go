// Package splunk drives the collector that our tests deliver to with Splunk's
// own logging library, so that the two readings of the protocol are not one. The
// library comes from npm when the tests run (package-lock.json).
package splunk
