// Package eventtest holds schemas and encoders for tests that need events.
package eventtest

import (
	"context"
	"fmt"

	"millrace/pipeline/codec"
)

// Schemas are the schemas of a test by id, as a registry has them.
type Schemas map[int]*codec.Schema

// SchemaList returns the schemas with their indexes as ids.
func SchemaList(types []*codec.Schema) Schemas {
	out := Schemas{}
	for i, s := range types {
		out[i] = s
	}
	return out
}

func (k Schemas) Schema(_ context.Context, ref codec.SchemaRef) (*codec.Schema, error) {
	s, ok := k[ref.ID]
	if !ok {
		return nil, fmt.Errorf("no schema has id %d", ref.ID)
	}
	return s, nil
}
