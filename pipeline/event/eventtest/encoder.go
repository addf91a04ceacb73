package eventtest

import (
	"context"
	"testing"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/harness"
	"millrace/pipeline/topology"
	"millrace/schemas"
)

// Schema parses a schema.
func Schema(t testing.TB, text string) *codec.Schema {
	t.Helper()
	s, err := codec.ParseSchema(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ShopTopic returns the topic shop.events with the shop's event types.
func ShopTopic(t testing.TB) *topology.Topic {
	t.Helper()
	topic := &topology.Topic{Name: "shop.events"}
	for _, name := range []string{"UserCreated", "UserUpdated", "UserDeleted", "OrderCreated", "OrderPaid", "OrderShipped"} {
		text, err := schemas.FS.ReadFile(name + ".avsc")
		if err != nil {
			t.Fatal(err)
		}
		topic.Types = append(topic.Types, Schema(t, string(text)))
	}
	return topic
}

// ShopEncoder returns an encoder of the shop's events, with schema ids from 1.
func ShopEncoder(t testing.TB) *event.Encoder {
	t.Helper()
	e, err := Encoder(t, ShopTopic(t), "data.id")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// Encoder returns an encoder with the time [harness.Now], the id [harness.ID] for
// events without one, and schema ids from 1.
func Encoder(t testing.TB, topic *topology.Topic, key string) (*event.Encoder, error) {
	t.Helper()
	e, err := event.NewEncoder(event.EncoderConfig{
		Topic: topic, Key: key, NewID: func() string { return harness.ID }, Now: func() time.Time { return harness.Now },
	})
	if err != nil {
		return nil, err
	}
	return e, e.Register(t.Context(), NewIDs(1), false)
}

// IDs is an [event.Registry] that has every schema.
type IDs struct{ next int }

// NewIDs returns a registry whose first id is first.
func NewIDs(first int) *IDs { return &IDs{first} }

// Lookup returns the next id.
func (r *IDs) Lookup(context.Context, string, *codec.Schema) (int, error) {
	r.next++
	return r.next - 1, nil
}

// Register is never called: no schema is missing.
func (*IDs) Register(context.Context, string, *codec.Schema) (int, error) { panic("registered") }

// Versions is never called: no schema is missing.
func (*IDs) Versions(context.Context, string) ([]codec.Version, error) { panic("versions read") }

// Schema is never called: no schema is missing.
func (*IDs) Schema(context.Context, codec.SchemaRef) (*codec.Schema, error) { panic("schema read") }

// SetCompatibility is never called: no schema is missing.
func (*IDs) SetCompatibility(context.Context, string, string) error { panic("compatibility set") }
