package stage_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/google/uuid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

func TestSplit(t *testing.T) {
	check(t, []testCase{
		{
			name:   "one event for each item",
			stages: `split: {on: [OrderCreated], field: data.items}`,
			in:     []string{order, paid},
			want:   []string{`id="ec3065f2-c2cc-5000-bea5-245b0056d95c" -data.items[1] | data.items[0].price=8 data.items[0].product_id="lp" data.items[0].quantity=1 id="5ba9bf1b-7b85-523e-aab8-1d3062f5ed34" -data.items[1]`, "="},
		},
		{
			name:   "an event with an empty or null array is filtered",
			stages: "- split: {on: [OrderCreated], field: data.items}\n- split: {name: tags, on: [Sampled], field: data.maybe_tags}",
			in:     []string{with(t, order, "data.items", "[]"), sampled, with(t, sampled, "data.maybe_tags", "[]")},
			want:   []string{"filtered", "filtered", "filtered"},
		},
		{
			name:   "a nullable array of nullable items",
			stages: `split: {on: [Sampled], field: data.maybe_tags, set: {data.text: "item == null ? 'none' : item", data.large: index}}`,
			in:     []string{with(t, sampled, "data.maybe_tags", `["a",null]`)},
			want:   []string{`data.large=0 data.text="a" id="ab60922e-4197-55ae-a697-3a5576e930c0" -data.maybe_tags[1] | data.large=1 data.maybe_tags[0]=null data.text="none" id="64bf95ef-0c41-5ebc-9330-b45e0b473f42" -data.maybe_tags[1]`},
		},
		{
			name:   "fields are set from the item",
			stages: `split: {on: [OrderCreated], field: data.items, set: {data.total_amount: item.price * double(item.quantity), metadata.line: string(index), data.id: data.id + '/' + item.product_id}}`,
			in:     []string{order},
			want:   []string{`data.id="o-1/cd" data.total_amount=7 id="ec3065f2-c2cc-5000-bea5-245b0056d95c" metadata.line="0" -data.items[1] | data.id="o-1/lp" data.items[0].price=8 data.items[0].product_id="lp" data.items[0].quantity=1 data.total_amount=8 id="5ba9bf1b-7b85-523e-aab8-1d3062f5ed34" metadata.line="1" -data.items[1]`},
		},
		{
			name:   "set can replace the id of a part",
			stages: `split: {on: [Sampled], field: data.tags, set: {id: "id + '/' + string(index)"}}`,
			in:     []string{with(t, sampled, "data.tags", `["a","b"]`)},
			want:   []string{`id="ab60922e-4197-55ae-a697-3a5576e930c0/0" -data.tags[1] | data.tags[0]="b" id="64bf95ef-0c41-5ebc-9330-b45e0b473f42/1" -data.tags[1]`},
		},
		{
			name: "later stages change each part independently",
			stages: `
- split: {on: [OrderCreated], field: data.items}
- enrich: {on: [OrderCreated], set: {metadata.seen: "has(metadata.seen) ? 'twice' : 'once'", data.user_id: data.user_id + '!'}}
- rekey: {on: [OrderCreated], key: "data.items[0].product_id"}
- route: {on: [OrderCreated], cases: [{when: "data.items[0].quantity > 1", to: shop.large}]}`,
			in:   []string{order},
			want: []string{`key "cd" to shop.large data.user_id="u-1!" id="ec3065f2-c2cc-5000-bea5-245b0056d95c" metadata.seen="once" -data.items[1] | key "lp" data.items[0].price=8 data.items[0].product_id="lp" data.items[0].quantity=1 data.user_id="u-1!" id="5ba9bf1b-7b85-523e-aab8-1d3062f5ed34" metadata.seen="once" -data.items[1]`},
		},
		{
			name: "parts can be split again",
			stages: `
- split: {on: [Sampled], field: data.tags}
- split: {name: more, on: [Sampled], field: data.maybe_tags}
- enrich: {on: [Sampled], set: {data.text: "data.tags[0] + ':' + id", data.tags: "[]", data.maybe_tags: "null"}}`,
			in:   []string{with(t, sampled, "data.tags", `["a","b"]`, "data.maybe_tags", `["x","y"]`)},
			want: []string{`data.maybe_tags=null data.text="a:702ac975-2b76-5890-ba15-d905fa7e78f0" id="702ac975-2b76-5890-ba15-d905fa7e78f0" -data.maybe_tags[0] -data.maybe_tags[1] -data.tags[0] -data.tags[1] | data.maybe_tags=null data.text="a:c5fe321b-6479-5da2-a2f4-86754180639c" id="c5fe321b-6479-5da2-a2f4-86754180639c" -data.maybe_tags[0] -data.maybe_tags[1] -data.tags[0] -data.tags[1] | data.maybe_tags=null data.text="b:ae486efd-bdea-5fc6-8eeb-d31759586b74" id="ae486efd-bdea-5fc6-8eeb-d31759586b74" -data.maybe_tags[0] -data.maybe_tags[1] -data.tags[0] -data.tags[1] | data.maybe_tags=null data.text="b:7b651735-1697-53d4-8f17-2d3763a83cd3" id="7b651735-1697-53d4-8f17-2d3763a83cd3" -data.maybe_tags[0] -data.maybe_tags[1] -data.tags[0] -data.tags[1]`},
		},
		{
			name:   "a part whose expression fails rejects the event",
			stages: `split: {on: [OrderCreated], field: data.items, set: {metadata.n: "string(6 / (item.quantity - 1))"}}`,
			in:     []string{order},
			want:   []string{`id="ec3065f2-c2cc-5000-bea5-245b0056d95c" metadata.n="6" -data.items[1] | reject expression: string(6 / (item.quantity - 1)): division by zero`},
		},
		{
			name:   "an array with too many items is rejected as a whole",
			stages: `split: {on: [OrderCreated], field: data.items, max: 1}`,
			in:     []string{order},
			want:   []string{"reject too_many_items: 2 items, but max is 1"},
		},
		{
			name:   "on_error skip passes the whole event if the first item fails",
			stages: `split: {on: [OrderCreated], field: data.items, set: {metadata.n: "string(6 / (item.quantity - 2))"}, on_error: skip}`,
			in:     []string{order},
			want:   []string{"="},
		},
	})
}

func TestSplitFaults(t *testing.T) {
	checkBad(t, []badCase{
		{"no array", `split: {on: [OrderCreated], field: data.user_id}`, `
data.user_id ^ data.user_id of OrderCreated is not an array; a split needs the path of an array`},
		{"no field", `split: {on: [OrderCreated], field: data.item}`, `
item} ^ shop.OrderCreated has no field data.item; did you mean "items"?`},
		{"an entry of a map", `split: {on: [OrderCreated], field: metadata.items}`, `
metadata.ite ^ metadata.items of OrderCreated is not an array; a split needs the path of an array`},
		{"not in all types", `split: {field: data.items}`, `
items} ^ shop.UserCreated has no field data.items; the same applies to UserUpdated, UserDeleted, OrderPaid, OrderShipped, Sampled; only OrderCreated has this field: limit the stage with on: [OrderCreated]`},
		{"unknown fields in set", `split: {on: [OrderCreated], field: data.items, set: {metadata.a: item.prize, data.total_amount: index, data.nothing: "1"}}`, `
prize, data. ^ item has no field item.prize; did you mean "price"?
nothing: "1" ^ shop.OrderCreated has no field data.nothing`},
	})
}

// The ids of the parts are version 5 UUIDs (RFC 9562), so they never change.
func TestSplitGivesEachPartAStableID(t *testing.T) {
	for id, space := range map[string]uuid.UUID{
		"4707dafd-3ce1-5973-9f7b-1c9c452822e7": uuid.MustParse("4707dafd-3ce1-5973-9f7b-1c9c452822e7"),
		"4707DAFD-3CE1-5973-9F7B-1C9C452822E7": uuid.MustParse("4707dafd-3ce1-5973-9f7b-1c9c452822e7"),
		"sample-1":                             uuid.NewSHA1(uuid.NameSpaceOID, []byte("sample-1")),
		"":                                     uuid.NewSHA1(uuid.NameSpaceOID, nil),
	} {
		r := newRunner(t, `split: {on: [Sampled], field: data.tags}`, nil)
		want := fmt.Sprintf(`id="%s" -data.tags[1] | data.tags[0]="b" id="%s" -data.tags[1]`,
			uuid.NewSHA1(space, []byte("0")), uuid.NewSHA1(space, []byte("1")))
		if got := r.run(t, with(t, sampled, "id", `"`+id+`"`, "data.tags", `["a","b"]`)); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// An Avro array can consist of several blocks, with and without a size.
func TestSplitReadsArraysInBlocks(t *testing.T) {
	r := newRunner(t, `split: {on: [OrderCreated], field: data.items, set: {metadata.n: string(index) + item.product_id}}`, nil)
	typ, body := r.encode(t, with(t, order, "data.items", `[]`))
	item := func(product string) []byte { return codec.AppendDouble(append(codec.AppendString(nil, product), 2), 1) }
	items := codec.AppendLong(codec.AppendLong(nil, -2), int64(len(item("a"))+len(item("b"))))
	items = append(append(items, item("a")...), item("b")...)
	items = append(append(codec.AppendLong(items, 1), item("c")...), 0)
	at := bytes.LastIndexByte(body[:len(body)-8], 0) // position of the empty array, before the 8 bytes of the amount
	body = append(append(bytes.Clone(body[:at]), items...), body[at+1:]...)
	var e pipeline.Event
	if err := r.decode(&e, typ, body, ""); err != nil {
		t.Fatal(err)
	}
	was := flatten(t, r.plan.Types[typ], body)
	var got []string
	if err := r.chain.Process(context.Background(), &e, func(e *pipeline.Event) error {
		got = append(got, flatten(t, r.plan.Output[typ], e.Append(nil))["metadata.n"])
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(was) == 0 || fmt.Sprint(got) != `["0a" "1b" "2c"]` {
		t.Errorf("got %v", got)
	}
}

func TestSplitAllocatesNothing(t *testing.T) {
	r := newRunner(t, `split: {on: [OrderCreated], field: data.items, set: {data.total_amount: item.price * double(item.quantity)}}`, nil)
	if n := allocations(t, r, order); n != 0 {
		t.Errorf("%v allocations per event, want 0", n)
	}
}
