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
			name:   "fields of records and items are dropped, kept and renamed",
			stages: `select: {on: [OrderCreated], drop: ["data.items[].price", data.user_id], rename: {"data.items[].quantity": count, data.id: number, version: v}}`,
			in:     []string{order},
			want:   []string{`data.items[0].count=2 data.items[1].count=1 data.number="o-1" v=1 -data.id -data.items[0].price -data.items[0].quantity -data.items[1].price -data.items[1].quantity -data.user_id -version`},
		},
		{
			name:   "only some fields of a record are kept",
			stages: `select: {on: [OrderCreated], keep: [id, type, timestamp, "data.items[].product_id", data.id]}`,
			in:     []string{order},
			want:   []string{`-data.items[0].price -data.items[0].quantity -data.items[1].price -data.items[1].quantity -data.total_amount -data.user_id -metadata -version`},
		},
		{
			name:   "entries of maps are set, and renamed fields take the place of others",
			stages: "- select: {on: [OrderCreated], to: OrderPaid, rename: {id: type, type: id}, set: {data.id: data.id, metadata.source: type + '?', metadata.seen: id}}",
			in:     []string{order},
			want:   []string{`id="OrderCreated" metadata.seen="4707dafd-3ce1-5973-9f7b-1c9c452822e7" metadata.source="OrderCreated?" type="4707dafd-3ce1-5973-9f7b-1c9c452822e7" -data.items[0] -data.items[1] -data.total_amount -data.user_id`},
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
		{"an unknown nested field", `select: {on: [OrderCreated], drop: [data.itms]}`, `data.itms]} ^ shop.OrderCreated has no field data.itms; did you mean "items"?`},
		{"a field of items without []", `select: {on: [OrderCreated], keep: [id, data.items.price]}`, `data.items.p ^ data.items of shop.OrderCreated is array of shop.Item, and has no fields; write data.items[].FIELD for a field of the items`},
		{"a field within text", `select: {on: [OrderCreated], drop: [id.x]}`, `id.x]} ^ id of shop.OrderCreated is string (uuid), and has no fields`},
		{"the items of no array", `select: {on: [OrderCreated], drop: ["id[].x"]}`, `id[].x"]} ^ id of shop.OrderCreated is string (uuid), and [] is for arrays and maps`},
		{"all items", `select: {on: [OrderCreated], drop: ["data.items[]"]}`, `data.items[] ^ data.items[] is not a field; name the array or map, or a field of its items`},
		{"a renamed field that is dropped", `select: {on: [OrderCreated], drop: [data], rename: {data.id: number}}`, `data.id: num ^ data.id is renamed, but it does not stay; keep it, or remove it here`},
		{"no field of a record stays", `select: {on: [OrderPaid], drop: [data.id]}`, `select: {on: ^ selecting fields of shop.OrderPaid: data: no field stays; drop the record as a whole; to remove events, use a filter`},
		{"rename to a field that the new type lacks", `select: {on: [OrderCreated], to: OrderCreated, rename: {id: identity}}`, `identity}} ^ shop.OrderCreated has no field identity`},
		{"a renamed field that the new type needs", `select: {on: [OrderCreated], to: OrderCreated, rename: {data.id: id}}`, `OrderCreated ^ data of shop.OrderCreated cannot be filled from shop.OrderCreated: shop.OrderCreatedData.id has no default, and the writer's schema lacks it; set: {data.FIELD: EXPRESSION}`},
		{"a rename that is no name", `select: {on: [OrderCreated], rename: {data.id: ident.id}}`, `ident.id}} ^ ident.id is not a name; write the new name alone; to move a field, declare the new type in the schemas directory and name it with to`},
		{"a rename out of items", `select: {on: [OrderCreated], to: OrderCreated, rename: {"data.items[].product_id": data.id}}`, `data.id}} ^ data.items[].product_id cannot become data.id: a field of items stays in its item; name a field of the same items, or set the array with map()`},
		{"a rename to another type", `select: {on: [OrderCreated], to: OrderCreated, rename: {data.total_amount: id}}`, `id}} ^ data.total_amount cannot become id of shop.OrderCreated: double cannot become string (uuid); set: {id: EXPRESSION}`},
		{"two sources of a field", `select: {on: [OrderCreated], to: OrderCreated, rename: {data.user_id: data.id}, set: {data.id: id}}`, `data.id: id} ^ data.id is set twice; remove one of them`},
		{"from without a record", `select: {on: [OrderCreated], from: id}`, `id} ^ id of shop.OrderCreated is string (uuid), and from needs a record; name a record, or a record that may be null`},
		{"a field without value and default", `select: {on: [UserCreated], to: OrderCreated}`, `OrderCreated ^ data of shop.OrderCreated cannot be filled from shop.UserCreated: shop.UserCreatedData is not shop.OrderCreatedData: the names differ, and it is no alias; set: {data.FIELD: EXPRESSION}`},
		{"set without to", `select: {on: [OrderCreated], drop: [metadata], set: {id: id}}`, `set: {id: id ^ set of a select needs to; add to: TYPE, or set fields with an enrich stage`},
		{"on_error skip", `select: {on: [OrderCreated], drop: [metadata], on_error: skip}`, `select: {on: ^ stage select gives events another schema, so it cannot skip one: it would pass in its old form; use on_error: dead_letter or stop`},
		{"a later stage that moves", "- select: {on: [OrderCreated], drop: [metadata], delete: version > 1}\n- rekey: {key: id}", `rekey: {key: ^ stage rekey sets the key, the topic or the number of events, but select before it writes tombstones, which do not reach it; put it before select`},
		{"a field that no longer exists", "- select: {on: [OrderCreated], drop: [metadata]}\n- enrich: {on: [OrderCreated], set: {metadata.x: id}}", `metadata.x:  ^ shop.OrderCreated has no field metadata; only UserCreated, UserUpdated, UserDeleted, OrderPaid, OrderShipped, Sampled have this field: limit the stage with on: [UserCreated, UserUpdated, UserDeleted, OrderPaid, OrderShipped, Sampled]`},
		{"a dedupe after it", "- select: {on: [OrderCreated], drop: [metadata]}\n- dedupe: {within: 1h}", `dedupe: {wit ^ a dedupe needs an id, and stage select before it gives events another schema; add by: EXPRESSION, or put it before that stage`},
		{"an output without an envelope", `select: {on: [OrderCreated], from: data}`, `shop.enriche ^ shop.OrderCreatedData has no valid field type, which every event needs; every event needs id and type (string) and timestamp (timestamp-micros); if these records have no such fields, set envelope: none on the topic`},
	})
}
