// Package schemas holds the shipped Avro schemas: one record per event type,
// and the states of the shipped projections.
package schemas

import "embed"

// FS holds the .avsc files.
//
//go:embed *.avsc
var FS embed.FS
