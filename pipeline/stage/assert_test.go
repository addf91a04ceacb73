package stage_test

import "testing"

func TestAssert(t *testing.T) {
	none := with(t, order, "data.items", `[]`)
	check(t, []testCase{
		{
			name:   "a false condition rejects the event, with the text of the condition",
			stages: `assert: {on: [OrderCreated], that: size(data.items) > 0}`,
			in:     []string{order, none, paid}, want: []string{"=", "reject assert: not true: size(data.items) > 0", "="},
		},
		{
			name:   "the message is used literally, including percent signs",
			stages: `assert: {on: [OrderCreated], that: size(data.items) > 0, message: "100 % of nothing: %d"}`,
			in:     []string{none}, want: []string{"reject assert: 100 % of nothing: %d"},
		},
		{
			name:   "a condition that cannot be evaluated has another reason",
			stages: `assert: {on: [OrderCreated], that: "data.items[0].quantity > 0"}`,
			in:     []string{none}, want: []string{"reject expression: data.items[0].quantity > 0: index out of bounds: 0"},
		},
		{
			name:   "on_error skip passes the event",
			stages: `assert: {on: [OrderCreated], that: size(data.items) > 0, on_error: skip}`,
			in:     []string{none}, want: []string{"="},
		},
		{
			name:   "on_error stop stops the worker",
			stages: `assert: {on: [OrderCreated], that: size(data.items) > 0, on_error: stop}`,
			in:     []string{none}, want: []string{"fatal stage assert rejected an event, and its on_error is stop: assert: not true: size(data.items) > 0"},
		},
		{
			name:   "a condition on the type alone",
			stages: `assert: {that: type != 'OrderPaid'}`,
			in:     []string{order, paid}, want: []string{"=", "reject assert: not true: type != 'OrderPaid'"},
		},
	})
}

func TestAssertFaults(t *testing.T) {
	checkBad(t, []badCase{
		{"nothing", `assert: {message: x}`, `
assert: {mes ^ assert has no that; add that: EXPRESSION. The condition that must be true.`},
		{"no bool", `assert: {on: [OrderPaid], that: data.id}`, `
data.id} ^ this is a string, but an assert needs a bool`},
		{"empty message", `assert: {that: "true", message: ""}`, `
"} ^ message is empty`},
	})
}

func TestAssertAllocatesNothing(t *testing.T) {
	if n := allocations(t, newRunner(t, `assert: {on: [OrderCreated], that: data.total_amount > 10.0}`, nil), order); n != 0 {
		t.Errorf("%v allocations per event, want 0", n)
	}
}
