// Package schemas embeds the Avro schemas of the example shop: a record for each event
// type, and the states of the projections.
package schemas

import "embed"

// FS holds the .avsc files. It is read-only.
//
//go:embed *.avsc
var FS embed.FS
