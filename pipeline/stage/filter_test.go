package stage_test

import "testing"

func TestFilter(t *testing.T) {
	check(t, []testCase{
		{
			name:   "keep",
			stages: `filter: {on: [OrderCreated], keep: data.total_amount > 100.0}`,
			in:     []string{order, with(t, order, "data.total_amount", "100.5"), user}, want: []string{"filtered", "=", "="},
		},
		{
			name:   "drop",
			stages: `filter: {drop: type == 'UserCreated' && data.email.endsWith('.cd')}`,
			in:     []string{user, with(t, user, "data.email", `"x@y.z"`), order}, want: []string{"filtered", "=", "="},
		},
		{
			name: "later stages are not checked against types that a filter drops",
			stages: `
- filter: {keep: type == 'OrderCreated'}
- rekey: {key: data.user_id}`,
			in: []string{order, paid, user}, want: []string{`key "u-1"`, "filtered", "filtered"},
		},
		{
			name:   "a condition that cannot be evaluated rejects the event",
			stages: `filter: {on: [OrderPaid], keep: 1 / (version - 3) > 0}`,
			in:     []string{paid}, want: []string{"reject expression: 1 / (version - 3) > 0: division by zero"},
		},
	})
}

func TestFilterFaults(t *testing.T) {
	checkBad(t, []badCase{
		{"nothing", `filter: {}`, `
filter: {} ^ a filter needs a condition; keep: EXPR, or drop: EXPR`},
		{"both", `filter: {keep: "true", drop: "false"}`, `
drop: "false ^ a filter takes keep or drop, not both; drop: x is keep: !(x)`},
		{"nothing is left", "- filter: {keep: type == 'Nothing'}\n- rekey: {key: id}", `
rekey: {key: ^ no event can reach stage rekey: stage filter lets none pass; remove the stage, or the one that blocks it`},
	})
}

func TestFilterAllocatesNothing(t *testing.T) {
	for _, limit := range []string{"10.0", "100.0"} { // the event passes; the event is dropped
		if n := allocations(t, newRunner(t, `filter: {on: [OrderCreated], keep: data.total_amount > `+limit+`}`, nil), order); n != 0 {
			t.Errorf("limit %s: %v allocations per event, want 0", limit, n)
		}
	}
}
