package sandbox

import (
	"fmt"

	"github.com/twmb/avro"
)

// DefaultCompatibility is the compatibility level of a new registry. A replay reads
// records of all old versions, so the newest schema must be able to read them all.
const DefaultCompatibility = "BACKWARD_TRANSITIVE"

// compatibility is a compatibility level.
type compatibility struct {
	backward   bool // the new schema must read data of the old one
	forward    bool // the old schema must read data of the new one
	transitive bool // check against all versions, not only the latest
}

// compatibilities maps names to levels. Source: Confluent's "Schema Evolution and
// Compatibility".
var compatibilities = map[string]compatibility{
	"NONE":                {},
	"BACKWARD":            {backward: true},
	"BACKWARD_TRANSITIVE": {backward: true, transitive: true},
	"FORWARD":             {forward: true},
	"FORWARD_TRANSITIVE":  {forward: true, transitive: true},
	"FULL":                {backward: true, forward: true},
	"FULL_TRANSITIVE":     {backward: true, forward: true, transitive: true},
}

// compatible checks a schema against one version of its subject, and returns the
// faults.
func (c compatibility) compatible(schema, old *avro.Schema, version int) (faults []string) {
	if c.backward {
		if err := avro.CheckCompatibility(old, schema); err != nil {
			faults = append(faults, fmt.Sprintf("the new schema cannot read data of version %d: %v", version, err))
		}
	}
	if c.forward {
		if err := avro.CheckCompatibility(schema, old); err != nil {
			faults = append(faults, fmt.Sprintf("version %d cannot read data of the new schema: %v", version, err))
		}
	}
	return faults
}
