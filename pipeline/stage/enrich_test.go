package stage_test

import "testing"

func TestEnrich(t *testing.T) {
	check(t, []testCase{
		{
			name:   "fields and map entries are computed from the event before the stage",
			stages: `enrich: {on: [OrderCreated], set: {data.user_id: data.id, data.id: data.user_id, metadata.source: "'was ' + metadata.source", metadata.at: string(now())}}`,
			in:     []string{order, paid},
			want:   []string{`data.id="u-1" data.user_id="o-1" metadata.at="2026-11-25T12:00:00Z" metadata.source="was web"`, "="},
		},
		{
			name:   "a whole map, then one of its entries",
			stages: "- enrich: {on: [OrderCreated], set: {metadata: \"{'a': 'b'}\"}}\n- enrich: {name: more, on: [OrderCreated], set: {metadata.c: metadata.a}}",
			in:     []string{order}, want: []string{`metadata.a="b" metadata.c="b" -metadata.source`},
		},
		{
			name:   "later stages see added fields",
			stages: "- enrich: {on: [OrderCreated], add: {data.cents: {type: long, value: int(data.total_amount * 100.0)}}}\n- enrich: {name: more, on: [OrderCreated], set: {metadata.cents: string(data.cents)}}",
			in:     []string{order, paid}, want: []string{`data.cents=1500 metadata.cents="1500"`, "="},
		},
		{
			name:   "an added field has its default if the event does not pass the stage",
			stages: `enrich: {on: [OrderPaid], add: {data.n: {type: long, value: 6 / (version - 3)}, data.text: {type: string?, value: data.id}}, on_error: skip}`,
			in:     []string{paid, with(t, paid, "version", "4")}, want: []string{`data.n=0 data.text=null`, `data.n=6 data.text="o-1"`},
		},
		{
			name:   "no field is set if one expression fails",
			stages: `enrich: {on: [OrderPaid], set: {data.id: "'x'", metadata.n: string(6 / (version - 3))}, on_error: skip}`,
			in:     []string{paid}, want: []string{"="},
		},
	})
}

func TestEnrichFaults(t *testing.T) {
	checkBad(t, []badCase{
		{"nothing", `enrich: {}`, `
enrich: {} ^ an enrich stage needs set or add; set: {metadata.source: "'web'"}`},
		{"the type", `enrich: {on: [OrderPaid], set: {type: "'x'"}}`, `
type: "'x'"} ^ type is "OrderPaid" in every shop.OrderPaid and cannot be set`},
		{"a map and an entry of it", `enrich: {on: [OrderPaid], set: {metadata.a: "'x'", metadata: "{'a': 'b'}"}}`, `
metadata: "{ ^ metadata is set twice`},
		{"existing field", `enrich: {on: [OrderPaid], add: {data.id: {type: string, value: "'x'"}}}`, `
data.id: {ty ^ adding data.id to shop.OrderPaid: the field already exists; to change its value, use set`},
		{"wrong type", `enrich: {on: [OrderPaid], set: {version: data.id}, add: {data.n: {type: long, value: data.id}}}`, `
data.id}, ad ^ version is an int in shop.OrderPaid, but this is a string
data.id}}} ^ data.n is a long in shop.OrderPaid, but this is a string`},
	})
}

func TestEnrichAllocatesNothing(t *testing.T) {
	r := newRunner(t, `enrich: {on: [OrderCreated], set: {metadata.seen: "'yes'", data.total_amount: data.total_amount * 2.0}, add: {data.cents: {type: long, value: int(data.total_amount)}}}`, nil)
	if n := allocations(t, r, order); n != 0 {
		t.Errorf("%v allocations per event, want 0", n)
	}
}
