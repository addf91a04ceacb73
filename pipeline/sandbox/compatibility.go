package sandbox

import (
	"fmt"

	"github.com/twmb/avro"
)

// DefaultCompatibility is what a new registry demands of the versions of a
// subject: a replay reads every old one.
const DefaultCompatibility = "BACKWARD_TRANSITIVE"

// compatibility is a level: which way, and against how many versions.
type compatibility struct {
	backward   bool // the new schema reads what the old one wrote
	forward    bool // the old schema reads what the new one writes
	transitive bool // against every version, not the latest alone
}

// Source of the names: Confluent's "Schema Evolution and Compatibility".
var compatibilities = map[string]compatibility{
	"NONE":                {},
	"BACKWARD":            {backward: true},
	"BACKWARD_TRANSITIVE": {backward: true, transitive: true},
	"FORWARD":             {forward: true},
	"FORWARD_TRANSITIVE":  {forward: true, transitive: true},
	"FULL":                {backward: true, forward: true},
	"FULL_TRANSITIVE":     {backward: true, forward: true, transitive: true},
}

// compatible checks a schema against one version, and returns what is wrong.
func (c compatibility) compatible(schema, old *avro.Schema, version int) (faults []string) {
	if c.backward {
		if err := avro.CheckCompatibility(old, schema); err != nil {
			faults = append(faults, fmt.Sprintf("the new schema cannot read what was written with version %d: %v", version, err))
		}
	}
	if c.forward {
		if err := avro.CheckCompatibility(schema, old); err != nil {
			faults = append(faults, fmt.Sprintf("version %d cannot read what is written with the new schema: %v", version, err))
		}
	}
	return faults
}
