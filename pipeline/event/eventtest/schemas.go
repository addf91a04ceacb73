// Package eventtest holds schemas and encoders for tests that need events.
//
// Start at [ShopEncoder] for writing and [SchemaList] for reading.
package eventtest

import (
	"context"
	"fmt"

	"millrace/pipeline/codec"
)

// Schemas is an [event.Schemas] with schemas by id.
type Schemas map[int]*codec.Schema

// SchemaList returns the schemas of types, whose ids are the indexes.
func SchemaList(types []*codec.Schema) Schemas {
	out := Schemas{}
	for i, s := range types {
		out[i] = s
	}
	return out
}

// Schema returns the schema with the id.
func (k Schemas) Schema(_ context.Context, ref codec.SchemaRef) (*codec.Schema, error) {
	s, ok := k[ref.ID]
	if !ok {
		return nil, fmt.Errorf("no schema has id %d", ref.ID)
	}
	return s, nil
}
