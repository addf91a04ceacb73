package stage_test

import "testing"

func TestUpcast(t *testing.T) {
	check(t, []testCase{
		{
			name:   "events below a version get the set fields and the version",
			stages: `upcast: {on: [OrderPaid], below: 3, set: {metadata.currency: "version == 1 ? 'USD' : 'EUR'"}}`,
			in:     []string{with(t, paid, "version", "1"), with(t, paid, "version", "2"), paid, user},
			want:   []string{`metadata.currency="USD" version=3`, `metadata.currency="EUR" version=3`, "=", "="},
		},
		{
			name: "several upcasts in sequence",
			stages: `
- upcast: {on: [OrderPaid], below: 2, set: {metadata.a: string(version)}}
- upcast: {name: more, on: [OrderPaid], below: 3, set: {metadata.b: string(version)}}`,
			in:   []string{with(t, paid, "version", "1"), with(t, paid, "version", "2"), paid},
			want: []string{`metadata.a="1" metadata.b="2" version=3`, `metadata.b="2" version=3`, "="},
		},
		{
			name:   "a failed expression rejects the event",
			stages: `upcast: {on: [OrderPaid], below: 9, set: {metadata.n: string(9 / (version - 3))}}`,
			in:     []string{paid}, want: []string{"reject expression: string(9 / (version - 3)): division by zero"},
		},
		{
			name:   "on_error skip keeps the old version",
			stages: `upcast: {on: [OrderPaid], below: 9, set: {metadata.n: string(9 / (version - 3))}, on_error: skip}`,
			in:     []string{paid}, want: []string{"="},
		},
		{
			name:   "events of an older schema, with their old fields",
			stages: `upcast: {from: OrderCreated.v1, set: {data.total_amount: double(int(old.data.total_cents)) / 100.0, metadata.was: old.data.total_cents, version: "2"}}`,
			in:     []string{written("OrderCreated.v1", ordered), order, user},
			want:   []string{`data.total_amount=7 metadata.was="700" version=2`, "=", "="},
		},
		{
			name: "previous stages do not change the old event",
			stages: `
- enrich: {on: [OrderCreated], set: {data.user_id: "'somebody'"}}
- upcast: {from: OrderCreated.v1, set: {metadata.user: old.data.user_id + ' is ' + data.user_id}}`,
			in:   []string{written("OrderCreated.v1", ordered)},
			want: []string{`data.user_id="somebody" metadata.user="u-1 is somebody"`},
		},
	})
}

func TestUpcastFaults(t *testing.T) {
	checkBad(t, []badCase{
		{"neither below nor from", `upcast: {set: {metadata.a: "'x'"}}`, `
upcast: {set ^ an upcast needs below or from; below: VERSION, or from: SCHEMA`},
		{"both", `upcast: {below: 2, from: OrderCreated.v1, set: {metadata.a: "'x'"}}`, `
below: 2, fr ^ an upcast takes below or from, not both; write one upcast for each`},
		{"nothing to set", `upcast: {on: [OrderPaid], below: 2, set: {}}`, `
set: {}} ^ an upcast needs at least one field to set; set: {PATH: EXPRESSION}`},
		{"the version twice", `upcast: {on: [OrderPaid], below: 2, set: {version: "2"}}`, `
version: "2" ^ the stage already sets the version to 2; remove it`},
		{"no such schema", `upcast: {from: OrderCreated.v2, set: {metadata.a: "'x'"}}`, `
OrderCreated ^ there is no schema OrderCreated.v2 in schemas (expected file: OrderCreated.v2.avsc); did you mean "OrderCreated.v1"?`},
		{"the current schema", `upcast: {from: OrderCreated, set: {metadata.a: "'x'"}}`, `
OrderCreated ^ this is the current schema of OrderCreated, so there is nothing to upcast; name an older schema, from a file such as OrderCreated.v1.avsc`},
		{"not an event type", `upcast: {from: Order, set: {metadata.a: "'x'"}}`, `
Order, set:  ^ Order is a schema of shop.Order, which is not an event type of this pipeline; there are UserCreated, UserUpdated, UserDeleted, OrderCreated, OrderPaid, OrderShipped, Sampled`},
		{"type not in on", `upcast: {on: [OrderPaid], from: OrderCreated.v1, set: {metadata.a: "'x'"}}`, `
OrderCreated ^ OrderCreated.v1 is a schema of OrderCreated, which this stage does not handle`},
		{"cannot be read", `upcast: {from: OrderShipped.v1, set: {metadata.a: "'x'"}}`, `
OrderShipped ^ OrderShipped.v1 cannot be read as OrderShipped: id: int cannot become string (uuid); give new fields a default, and set them here`},
		{"no such old field", `upcast: {from: OrderCreated.v1, set: {metadata.a: old.data.total_cent}}`, `
total_cent}} ^ shop.OrderCreated has no field data.total_cent; did you mean "total_cents"?`},
		{"old without from", `upcast: {on: [OrderPaid], below: 2, set: {metadata.a: old.data.id}}`, `
old.data.id} ^ shop.OrderPaid has no field old; available names: id, type, timestamp, version, metadata, data`},
	})
}

func TestUpcastAllocatesNothing(t *testing.T) {
	r := newRunner(t, `upcast: {on: [OrderPaid], below: 9, set: {metadata.a: data.id}}`, nil)
	if n := allocations(t, r, paid); n != 0 {
		t.Errorf("%v allocations per event, want 0", n)
	}
}
