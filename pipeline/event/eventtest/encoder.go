package eventtest

import (
	"testing"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/harness"
	"millrace/schemas"
)

func SchemaOf(t testing.TB, text string) *codec.Schema {
	t.Helper()
	s, err := codec.ParseSchema(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ShopEncoder returns an encoder of the shop's events, with schema ids from 1, a
// fixed clock and one id for events without.
func ShopEncoder(t testing.TB) *event.Encoder {
	t.Helper()
	var list []*codec.Schema
	for _, name := range []string{"UserCreated", "UserUpdated", "UserDeleted", "OrderCreated", "OrderPaid", "OrderShipped"} {
		text, err := schemas.FS.ReadFile(name + ".avsc")
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, SchemaOf(t, string(text)))
	}
	e, err := event.NewEncoder("shop.events", list, "data.id", func() string { return harness.ID }, func() time.Time { return harness.Now })
	if err != nil {
		t.Fatal(err)
	}
	for i, typ := range e.Types {
		typ.ID = i + 1
	}
	return e
}
