// Package event turns records into events and events into records: it finds the
// type by the schema id, derives the envelope where a topic has none, reads and
// writes CloudEvents headers, and encodes JSON as Avro.
//
// Start at [Decoder] for reading and [Encoder] for writing. Each belongs to one
// goroutine.
package event

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/topology"
)

// Schemas knows the schemas that records name: a [codec.Registry].
type Schemas interface {
	Schema(context.Context, codec.SchemaRef) (*codec.Schema, error)
}

// Decoder finds out which of the known event types a record is, and gives its
// body in the shape of our schema of that type. The schema id alone tells; the
// body is only touched if it was written with another version of the schema.
//
// A decoder belongs to one session.
type Decoder struct {
	schemas Schemas
	types   []*codec.Schema
	old     []topology.Old
	byName  map[string]int
	known   map[codec.SchemaRef]binding
	recent  [8]struct { // of those that have an id, by its last bits
		id int
		*binding
	}
	scratch []byte
}

// binding is what is known of a writer's schema.
type binding struct {
	typ      int
	old      int             // which old shape it is, -1 if none
	resolver *codec.Resolver // nil if the bytes are right as they are
	err      error           // of ClassReject: records of this schema are bad
}

func NewDecoder(schemas Schemas, types []*codec.Schema, old []topology.Old) *Decoder {
	d := &Decoder{schemas: schemas, types: types, old: old, byName: map[string]int{}, known: map[codec.SchemaRef]binding{}}
	for i, t := range types {
		d.byName[t.Name()] = i
	}
	return d
}

// Decoded is a record as one of the known types.
type Decoded struct {
	Type    int
	Body    []byte // valid until the next decode
	rewrote bool   // body is not part of the record's value

	Old     int    // which of the old shapes it was written in, -1 if in none
	OldBody []byte // as it was written
}

// Decode decodes a record. wanted, if not nil, says for which types the body is
// of interest; for others only the type is found. An error of ClassReject says
// that the record is bad; any other that it is not known (yet) what it is.
func (d *Decoder) Decode(ctx context.Context, r *pipeline.Record, wanted func(typ int) bool) (Decoded, error) {
	ref, body, err := codec.Unframe(r)
	if err != nil {
		return Decoded{}, err
	}
	recent := &d.recent[uint(ref.ID)%uint(len(d.recent))]
	b := recent.binding
	if b == nil || recent.id != ref.ID || ref.ByGUID {
		if b, err = d.binding(ctx, ref); err != nil {
			return Decoded{}, err
		}
		if !ref.ByGUID {
			recent.id, recent.binding = ref.ID, b
		}
	}
	if b.err != nil {
		return Decoded{}, b.err
	}
	if b.resolver == nil || wanted != nil && !wanted(b.typ) {
		return Decoded{Type: b.typ, Body: body, Old: b.old, OldBody: body}, nil
	}
	if d.scratch, err = b.resolver.Append(d.scratch[:0], body); err != nil {
		return Decoded{}, err
	}
	return Decoded{Type: b.typ, Body: d.scratch, rewrote: true, Old: b.old, OldBody: body}, nil
}

// binding returns what is known of a schema, and finds it out the first time.
func (d *Decoder) binding(ctx context.Context, ref codec.SchemaRef) (*binding, error) {
	b, ok := d.known[ref]
	if !ok {
		var err error
		if b, err = d.bind(ctx, ref); err != nil {
			return nil, err
		}
		d.known[ref] = b
	}
	return &b, nil
}

func (d *Decoder) bind(ctx context.Context, ref codec.SchemaRef) (binding, error) {
	writer, err := d.schemas.Schema(ctx, ref)
	if err != nil {
		return binding{}, err
	}
	typ, ok := d.byName[writer.Name()]
	if !ok {
		return binding{err: pipeline.Reject(pipeline.ReasonUnknownType,
			"event type %s is not among the types of this topic in the topology: %s", writer.Name(), d.names())}, nil
	}
	resolver, err := codec.NewResolver(writer, d.types[typ])
	if err != nil {
		return binding{err: &pipeline.RejectError{Reason: pipeline.ReasonBadSchema,
			Err: fmt.Errorf("the writer's schema of %s cannot be read with ours: %w", writer.Name(), err)}}, nil
	}
	old := slices.IndexFunc(d.old, func(o topology.Old) bool { return o.Type == typ && codec.SameBytes(o.Schema, writer) })
	return binding{typ: typ, old: old, resolver: resolver}, nil
}

func (d *Decoder) names() string {
	names := make([]string, len(d.types))
	for i, t := range d.types {
		names[i] = t.Name()
	}
	return strings.Join(names, ", ")
}

// TypeOf returns the type of a record, without a look at its body.
func (d *Decoder) TypeOf(ctx context.Context, in *pipeline.Record) (int, error) {
	out, err := d.Decode(ctx, in, func(int) bool { return false })
	return out.Type, err
}
