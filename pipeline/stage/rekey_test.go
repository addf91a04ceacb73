package stage_test

import "testing"

func TestRekey(t *testing.T) {
	check(t, []testCase{
		{
			name:   "a string is used as the key unchanged",
			stages: `rekey: {on: [OrderCreated], key: data.user_id}`,
			in:     []string{order, with(t, order, "data.user_id", `"ü"`), paid}, want: []string{`key "u-1"`, `key "ü"`, "="},
		},
		{
			name:   "a computed string",
			stages: `rekey: {on: [OrderCreated], key: data.user_id + '/' + string(size(data.items))}`,
			in:     []string{order}, want: []string{`key "u-1/2"`},
		},
		{
			name:   "a UUID of either Avro type becomes its text",
			stages: "- rekey: {on: [Sampled], key: data.uuid16}\n- rekey: {name: again, on: [OrderPaid], key: id}",
			in:     []string{sampled, paid}, want: []string{`key "30313233-3435-3637-3839-616263646566"`, `key "4707dafd-3ce1-5973-9f7b-1c9c452822e7"`},
		},
		{
			name:   "an integer of any size becomes decimal digits",
			stages: `rekey: {on: [Sampled], key: data.large}`,
			in:     []string{sampled, with(t, sampled, "data.large", "-9223372036854775808")}, want: []string{`key "8"`, `key "-9223372036854775808"`},
		},
		{
			name:   "an enum becomes its symbol",
			stages: `rekey: {on: [Sampled], key: data.color}`,
			in:     []string{sampled}, want: []string{`key "green"`},
		},
		{
			name:   "an empty key rejects the event",
			stages: `rekey: {on: [OrderCreated], key: data.user_id}`,
			in:     []string{with(t, order, "data.user_id", `""`)}, want: []string{"reject empty_key: the new key is empty"},
		},
		{
			name:   "on_error skip keeps the old key",
			stages: `rekey: {on: [OrderCreated], key: data.user_id, on_error: skip}`,
			in:     []string{with(t, order, "data.user_id", `""`)}, want: []string{"="},
		},
		{
			name:   "the key is computed from the event after the previous stages",
			stages: "- enrich: {on: [OrderPaid], set: {data.id: \"'o-' + string(version)\"}}\n- rekey: {on: [OrderPaid], key: data.id}",
			in:     []string{paid}, want: []string{`key "o-3" data.id="o-3"`},
		},
	})
}

func TestRekeyFaults(t *testing.T) {
	checkBad(t, []badCase{
		{"nullable", `rekey: {on: [UserUpdated], key: data.name}`, `
data.name} ^ data.name can be null, but the key in UserUpdated cannot; give a default: data.name != null ? data.name : ...`},
		{"neither string nor integer", `rekey: {on: [OrderCreated], key: data.total_amount}`, `
data.total_a ^ the key is a string in OrderCreated, but this is a double; convert it with string(x)`},
		{"no such field", `rekey: {on: [OrderPaid, OrderShipped], key: data.user_id}`, `
user_id} ^ shop.OrderPaid has no field data.user_id; the same applies to all 2 types; only OrderCreated has this field: limit the stage with on: [OrderCreated]`},
		{"no key", `rekey: {}`, `
rekey: {} ^ rekey has no key; add key: EXPRESSION. The new key: a string (written as UTF-8) or an integer (written as decimal digits).`},
	})
}

func TestRekeyAllocatesNothing(t *testing.T) {
	for _, stages := range []string{`rekey: {on: [OrderCreated], key: data.user_id + '/x'}`, `rekey: {on: [OrderCreated], key: version}`} {
		if n := allocations(t, newRunner(t, stages, nil), order); n != 0 {
			t.Errorf("%s: %v allocations per event, want 0", stages, n)
		}
	}
}
