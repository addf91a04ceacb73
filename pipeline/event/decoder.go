package event

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/codec/resolve"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/topology"
)

// Schemas returns the schema with an id or GUID. [codec.Registry] implements it. An
// error of ClassReject means that there is no such schema.
type Schemas interface {
	Schema(context.Context, codec.SchemaRef) (*codec.Schema, error)
}

// Decoder finds the event type of a record and converts its body to our schema of
// the type. The schema id determines the type, with the branch if the schema is a union of
// types. The name of the type is that of ours, without namespace or by an alias of ours.
// The body is read only if it was written with another version of the schema.
//
// One goroutine, usually that of a session, owns a decoder.
type Decoder struct {
	schemas Schemas
	types   []*codec.Schema
	old     []topology.Old
	known   map[codec.SchemaRef]binding
	recent  [8]struct { // cache of the schemas with an id, by its last bits
		id int
		*binding
	}
	scratch []byte            // the last converted body
	drift   *Drift            // nil: dropped fields are not logged
	keys    *keyformat.Reader // nil: DecodeWithKey reads none
}

// binding is the meaning of a writer's schema.
type binding struct {
	typ      int
	old      int               // index of the old shape with this schema, -1 if none
	resolver *resolve.Resolver // nil if the body needs no conversion
	err      error             // of ClassReject: every record with this schema is rejected
	branches []binding         // of a union, whose body begins with the branch; nil otherwise
}

// NewDecoder returns a decoder of the types. old are former shapes of types, which
// [Decoded.Old] recognizes.
func NewDecoder(schemas Schemas, types []*codec.Schema, old []topology.Old) *Decoder {
	return &Decoder{schemas: schemas, types: types, old: old, known: map[codec.SchemaRef]binding{}}
}

// ReadKeys makes DecodeWithKey read the keys of a topic, unless they are text.
func (d *Decoder) ReadKeys(f keyformat.Format, topic string) {
	if !f.IsText() {
		d.keys = keyformat.NewReader(f, topic, d.schemas)
	}
}

// LogDrift makes the decoder log the fields of writers that our schemas lack.
func (d *Decoder) LogDrift(drift *Drift) { d.drift = drift }

// Decoded is a decoded record.
type Decoded struct {
	Type int    // index of the type
	Body []byte // Avro, in our schema of the type; valid until the next Decode

	Old     int    // index of the old shape that the record was written in, -1 if none
	OldBody []byte // as it was written

	// Key is the record's key; nil if the keys are text. Only DecodeWithKey sets it, also
	// for a record that is bad. It is valid until the next DecodeWithKey.
	Key *keyformat.Key
}

// DecodeWithKey is [Decoder.Decode], and also reads the key. A key that does not have the
// format is no error: see [keyformat.Key].
func (d *Decoder) DecodeWithKey(ctx context.Context, r *pipeline.Record, wanted func(typ int) bool) (Decoded, error) {
	out, err := d.Decode(ctx, r, wanted)
	if d.keys == nil || err != nil && pipeline.ClassOf(err) != pipeline.ClassReject {
		return out, err
	}
	key, keyErr := d.keys.Read(ctx, r)
	if keyErr != nil {
		return out, keyErr
	}
	out.Key = key
	return out, err
}

// Decode decodes a record. If wanted is not nil, Body is meaningful only for the
// types that it selects; for others the body is not converted. An error of
// ClassReject means that the record is bad, another error that its schema is not
// available at the moment.
func (d *Decoder) Decode(ctx context.Context, r *pipeline.Record, wanted func(typ int) bool) (Decoded, error) {
	var err error
	id, body, ok := codec.UnframeID(r)
	recent := &d.recent[uint(id)%uint(len(d.recent))]
	b := recent.binding
	if !ok || b == nil || recent.id != id {
		if b, body, err = d.unframe(ctx, r); err != nil {
			return Decoded{}, err
		}
	}
	if b.branches != nil {
		if b, body, err = b.branch(body); err != nil {
			return Decoded{}, err
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
	return Decoded{Type: b.typ, Body: d.scratch, Old: b.old, OldBody: body}, nil
}

// unframe returns the binding of a record's schema, and the body of the record.
func (d *Decoder) unframe(ctx context.Context, r *pipeline.Record) (*binding, []byte, error) {
	ref, body, err := codec.Unframe(r)
	if err != nil {
		return nil, nil, err
	}
	recent := &d.recent[uint(ref.ID)%uint(len(d.recent))]
	if recent.binding != nil && recent.id == ref.ID && !ref.ByGUID {
		return recent.binding, body, nil
	}
	b, err := d.binding(ctx, r.Topic, ref)
	if err == nil && !ref.ByGUID {
		recent.id, recent.binding = ref.ID, b
	}
	return b, body, err
}

// binding returns the binding of a schema. Only the first call for a schema asks the
// registry.
func (d *Decoder) binding(ctx context.Context, topic string, ref codec.SchemaRef) (*binding, error) {
	b, ok := d.known[ref]
	if !ok {
		var err error
		if b, err = d.bind(ctx, ref); err != nil {
			return nil, err
		}
		d.known[ref] = b
		for _, one := range append(b.branches, b) {
			if one.resolver != nil {
				d.drift.note(topic, ref, d.types[one.typ].Name(), one.resolver.Changes())
			}
		}
	}
	return &b, nil
}

// prepareTimeout bounds the time of a Prepare, and so the time by which unknown schema ids
// delay a batch. prepareLimit is the number of schemas that it looks up at once.
const (
	prepareTimeout = 10 * time.Second
	prepareLimit   = 1024
)

// Prepare looks up the schemas of records that the decoder does not know yet, all at
// once, so that many unknown schema ids take as long as one. A schema that does not exist
// is no error here: Decode rejects its records. An error means that the schemas are not
// available at the moment.
func (d *Decoder) Prepare(ctx context.Context, records []*pipeline.Record) error {
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(prepareLimit)
	asked := map[codec.SchemaRef]bool{}
	for _, r := range records {
		ref, _, err := codec.Unframe(r)
		if _, known := d.known[ref]; err != nil || known || asked[ref] {
			continue
		}
		asked[ref] = true
		g.Go(func() error {
			_, err := d.schemas.Schema(ctx, ref)
			if err != nil && pipeline.ClassOf(err) == pipeline.ClassReject {
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("looking up %d schemas that are new: %w", len(asked), err)
	}
	return nil
}

func (d *Decoder) bind(ctx context.Context, ref codec.SchemaRef) (binding, error) {
	writer, err := d.schemas.Schema(ctx, ref)
	if err != nil {
		return binding{}, err
	}
	if writer.Root().Kind != codec.Union {
		return d.bindType(writer), nil
	}
	var union binding // several event types in one schema
	for _, b := range writer.Branches() {
		union.branches = append(union.branches, d.bindType(b))
	}
	return union, nil
}

func (d *Decoder) bindType(writer *codec.Schema) binding {
	typ, err := codec.BestMatch(writer.Root(), d.types)
	switch {
	case err != nil:
		return binding{err: pipeline.Reject(pipeline.ReasonUnknownType, "event type %w", err)}
	case typ < 0:
		return binding{err: pipeline.Reject(pipeline.ReasonUnknownType,
			"event type %s is not among the types of this topic in the topology: %s", writer.Name(), d.names())}
	}
	resolver, err := resolve.New(writer, d.types[typ])
	if err != nil {
		return binding{err: &pipeline.RejectError{Reason: pipeline.ReasonBadSchema,
			Err: fmt.Errorf("the writer's schema of %s cannot be read with ours: %w", writer.Name(), err)}}
	}
	old := slices.IndexFunc(d.old, func(o topology.Old) bool { return o.Type == typ && codec.SameBytes(o.Schema, writer) })
	return binding{typ: typ, old: old, resolver: resolver}
}

// branch returns the binding of the event's branch of a union, and the rest of the body.
func (b *binding) branch(body []byte) (*binding, []byte, error) {
	n, rest, err := codec.ReadLong(body)
	switch {
	case err != nil:
		return nil, nil, pipeline.Reject(pipeline.ReasonBadBody, "the branch of a union: %w", err)
	case n < 0 || n >= int64(len(b.branches)):
		return nil, nil, pipeline.Reject(pipeline.ReasonBadBody, "branch %d of a union of %d", n, len(b.branches))
	}
	return &b.branches[n], rest, nil
}

func (d *Decoder) names() string {
	names := make([]string, len(d.types))
	for i, t := range d.types {
		names[i] = t.Name()
	}
	return strings.Join(names, ", ")
}

// TypeOf returns the index of a record's type. It does not read the body.
func (d *Decoder) TypeOf(ctx context.Context, in *pipeline.Record) (int, error) {
	out, err := d.Decode(ctx, in, func(int) bool { return false })
	return out.Type, err
}
