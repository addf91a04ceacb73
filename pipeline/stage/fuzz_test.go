package stage_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/stage"
)

// fuzzed are stages that together cover all operations of stages on bytes.
var fuzzed = []string{
	`
- upcast: {from: OrderCreated.v1, set: {metadata.was: old.data.total_cents, data.items: old.data.items}}
- upcast: {name: below, on: [Sampled, OrderCreated], below: 9, set: {metadata.version: string(version)}}
- assert: {on: [OrderCreated], that: "size(data.items) < 100 && data.items.all(i, i.quantity >= 0)"}
- split: {on: [OrderCreated], field: data.items, set: {data.total_amount: item.price * double(item.quantity), metadata.n: string(index)}}
- mask: {on: [OrderCreated], fields: {"data.items[].product_id": keep_first 2, "metadata[]": hash, id: hash}, key: k}
- rekey: {on: [OrderCreated], key: data.user_id}
- route: {match: all, cases: [{when: "type == 'OrderCreated' && data.total_amount > 5.0", to: shop.large}, {when: type.startsWith('Order'), to: shop.orders}], otherwise: drop}`,
	`
- split: {on: [Sampled], field: data.maybe_tags, set: {data.text: "item == null ? data.text : item", data.large: index + data.large}}
- split: {name: tags, on: [Sampled], field: data.tags}
- go: {on: [Sampled], use: one}`,
	`
- mask:
    on: [Sampled]
    fields: {data.flag: redact, data.raw: hash, data.text: keep_last 2, data.uuid: hash, data.uuid16: hash, "data.tags[]": keep_first 3, data.maybe: hash, "data.people[].name": keep_last 1, "data.people[].cards[]": hash, metadata.ip: redact, data.price: redact}
- enrich: {on: [Sampled], set: {data.small: data.small + 1, metadata.seen: "string(data.large)", data.tags: "data.tags + [data.text]"}}
- rekey: {on: [Sampled], key: data.large}`,
	`mask: {on: [UserCreated, UserUpdated], fields: {data.email: hash, data.name: keep_first 1, "metadata[]": keep_last 4}, salt: s}`,
}

// FuzzStages runs every body that a walk accepts through stages. A stage must not panic,
// may only fail with a rejection, must not change the input bytes, and must produce
// valid events.
func FuzzStages(f *testing.F) {
	kinds := one("data.text", func(r stage.Reader[string], w stage.Writer[string], e *pipeline.Event) error {
		text, _ := r.Get(e)
		return w.Set(e, text+"!")
	})
	var runners []*runner
	for _, stages := range fuzzed {
		runners = append(runners, newRunnerOf(f, stages, nil, kinds))
	}
	full := with(f, sampled, "data.tags", `["4111 1111","12"]`, "data.maybe", `"secret"`, "data.maybe_tags", `["a",null]`,
		"data.people", `{"ann":{"name":"Ann","cards":["4111","42"]}}`, "metadata", `{"ip":"10.0.0.1"}`)
	old, err := codec.EncodeJSON(oldSchema(f, "OrderCreated.v1"), parseJSON(f, ordered))
	if err != nil {
		f.Fatal(err)
	}
	for _, event := range []string{order, user, paid, sampled, full} {
		typ, body := runners[0].encode(f, event)
		f.Add(uint8(typ), body, old)
	}
	f.Fuzz(func(t *testing.T, typ uint8, body, old []byte) {
		before := bytes.Clone(body)
		for i, r := range runners {
			typ := int(typ) % len(r.plan.Types)
			e := &r.event
			if err := r.decode(e, typ, body, "k"); err != nil {
				return
			}
			if len(r.plan.Old) > 0 && r.plan.Old[0].Type == typ && r.plan.Old[0].Layout.Walk(old, &e.Old) == nil {
				e.OldType = 0
			}
			err := r.chain.Process(context.Background(), e, func(e *pipeline.Event) error {
				return codec.Validate(r.plan.Output[e.Type].Root(), e.Append(nil))
			})
			var panicked *pipeline.PanicError
			if errors.As(err, &panicked) {
				t.Fatalf("stages %d: %v\n%s", i, panicked, panicked.Stack)
			}
			if err != nil && pipeline.ClassOf(err) != pipeline.ClassReject {
				t.Fatalf("stages %d: %v", i, err)
			}
			if reason := pipeline.ReasonOf(err); reason == pipeline.ReasonBadBody || reason == pipeline.ReasonTrailingBytes {
				t.Fatalf("stages %d accepted or produced an invalid body: %v", i, err)
			}
			r.conserved(t)
		}
		if !bytes.Equal(body, before) {
			t.Fatal("the bytes of the input were changed")
		}
	})
}
