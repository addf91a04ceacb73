package stage_test

import "testing"

func TestSelect(t *testing.T) {
	check(t, []testCase{
		{
			name:   "fields are dropped and the others stay",
			stages: `select: {on: [OrderCreated], drop: [metadata]}`,
			in:     []string{paid},
			want:   []string{"="},
		},
		{
			name:   "another type has fields of the same name and those that are set",
			stages: "- enrich: {on: [OrderCreated], set: {data.user_id: data.user_id + '!'}, add: {data.more: {type: long, value: \"1\"}}}\n- select: {on: [OrderCreated], to: OrderPaid, set: {type: \"'OrderPaid'\", data.id: data.user_id + '/' + data.id}}\n- enrich: {name: after, on: [OrderPaid], set: {metadata.seen: data.id}}",
			in:     []string{order},
			want:   []string{`data.id="u-1!/o-1" metadata.seen="u-1!/o-1" type="OrderPaid" -data.items[0] -data.items[1] -data.total_amount -data.user_id`},
		},
		{
			name:   "each part of a split is selected",
			stages: "- split: {on: [OrderCreated], field: data.items}\n- select: {on: [OrderCreated], delete: \"data.items[0].quantity == 1\", drop: [metadata]}",
			in:     []string{order},
			want:   []string{`id="ec3065f2-c2cc-5000-bea5-245b0056d95c" -data.items[1] -metadata | deleted`},
		},
		{
			name:   "a condition that fails rejects the event",
			stages: `select: {on: [OrderPaid], drop: [metadata], delete: "1 / (version - version) == 0"}`,
			in:     []string{paid},
			want:   []string{"reject expression: 1 / (version - version) == 0: division by zero"},
		},
	})
}

func TestSelectFaults(t *testing.T) {
	checkBad(t, []badCase{
		{"keep and drop", `select: {keep: [id], drop: [id]}`, `drop: [id]} ^ a select takes keep or drop, not both; keep: [FIELD], or drop: [FIELD]`},
		{"an unknown field", `select: {on: [OrderCreated], drop: [metadat]}`, `metadat]} ^ shop.OrderCreated has no field metadat; did you mean "metadata"?`},
		{"a nested field", `select: {on: [OrderCreated], drop: [data.items]}`, `data.items]} ^ a select keeps whole fields of shop.OrderCreated, and data.items is within one; select fields of one record, with from: PATH, or compute fields of another type with to and set`},
		{"from without a record", `select: {on: [OrderCreated], from: id}`, `id} ^ id of shop.OrderCreated is string (uuid), and from needs a record; name a record, or a record that may be null`},
		{"a field without value and default", `select: {on: [UserCreated], to: OrderCreated}`, `OrderCreated ^ data of shop.OrderCreated cannot be filled from shop.UserCreated: shop.UserCreatedData is not shop.OrderCreatedData: the names differ, and it is no alias; set: {data.FIELD: EXPRESSION}`},
		{"set without to", `select: {on: [OrderCreated], drop: [metadata], set: {id: id}}`, `set: {id: id ^ set of a select needs to; add to: TYPE, or set fields with an enrich stage`},
		{"on_error skip", `select: {on: [OrderCreated], drop: [metadata], on_error: skip}`, `select: {on: ^ stage select gives events another schema, so it cannot skip one: it would pass in its old form; use on_error: dead_letter or stop`},
		{"a later stage that moves", "- select: {on: [OrderCreated], drop: [metadata], delete: version > 1}\n- rekey: {key: id}", `rekey: {key: ^ stage rekey sets the key, the topic or the number of events, but select before it writes tombstones, which do not reach it; put it before select`},
		{"a field that no longer exists", "- select: {on: [OrderCreated], drop: [metadata]}\n- enrich: {on: [OrderCreated], set: {metadata.x: id}}", `metadata.x:  ^ shop.OrderCreated has no field metadata; only UserCreated, UserUpdated, UserDeleted, OrderPaid, OrderShipped, Sampled have this field: limit the stage with on: [UserCreated, UserUpdated, UserDeleted, OrderPaid, OrderShipped, Sampled]`},
		{"an output without an envelope", `select: {on: [OrderCreated], from: data}`, `shop.enriche ^ shop.OrderCreatedData has no valid field type, which every event needs; every event needs id and type (string) and timestamp (timestamp-micros); if these records have no such fields, set envelope: none on the topic`},
	})
}
