package stage_test

import (
	"testing"
)

func TestRoute(t *testing.T) {
	large := with(t, order, "data.total_amount", "200")
	check(t, []testCase{
		{
			name:   "only the first matching case applies",
			stages: `route: {cases: [{when: type.startsWith('Order'), to: shop.orders}, {when: "true", to: shop.users}]}`,
			in:     []string{order, paid, user}, want: []string{"to shop.orders", "to shop.orders", "to shop.users"},
		},
		{
			name:   "an event that matches no case keeps the pipeline's own topic",
			stages: `route: {on: [OrderCreated], cases: [{when: data.total_amount > 100.0, to: shop.large}]}`,
			in:     []string{order, large, paid}, want: []string{"=", "to shop.large", "="},
		},
		{
			name:   "otherwise drop filters it, but not events of other types",
			stages: `route: {on: [OrderCreated], cases: [{when: data.total_amount > 100.0, to: shop.large}], otherwise: drop}`,
			in:     []string{order, large, paid}, want: []string{"filtered", "to shop.large", "="},
		},
		{
			name:   "otherwise names a topic",
			stages: `route: {cases: [{when: type == 'UserCreated', to: shop.users}], otherwise: shop.orders}`,
			in:     []string{order, user}, want: []string{"to shop.orders", "to shop.users"},
		},
		{
			name: "match all writes the event to the topic of each matching case, once per topic",
			stages: `route:
  match: all
  on: [OrderCreated]
  cases:
    - {when: data.user_id == 'u-1', to: shop.users}
    - {when: "true", to: shop.orders}
    - {when: data.total_amount > 100.0, to: shop.large}
    - {when: data.total_amount > 10.0, to: shop.orders}`,
			in:   []string{order, large, with(t, order, "data.user_id", `"u-2"`)},
			want: []string{"to shop.users, shop.orders", "to shop.users, shop.orders, shop.large", "to shop.orders"},
		},
		{
			name: "the last route stage that chooses a topic decides",
			stages: `
- route: {cases: [{when: "type == 'OrderPaid'", to: shop.orders}], otherwise: shop.users}
- route: {name: again, on: [OrderCreated], cases: [{when: data.total_amount > 100.0, to: shop.large}]}`,
			in: []string{paid, order, large}, want: []string{"to shop.orders", "to shop.users", "to shop.large"},
		},
		{
			name:   "an expression that fails rejects the event",
			stages: `route: {on: [OrderCreated], cases: [{when: "data.items[2].quantity > 1", to: shop.large}]}`,
			in:     []string{order}, want: []string{"reject expression: data.items[2].quantity > 1: index out of bounds: 2"},
		},
	})
}

func TestRouteFaults(t *testing.T) {
	checkBad(t, []badCase{
		{"no topic", `route: {cases: [{when: "true", to: shop.order}], otherwise: shop.user}`, `
shop.order}] ^ there is no topic shop.order; did you mean "shop.orders"?
shop.user} ^ there is no topic shop.user; did you mean "shop.users"?`},
		{"no topic like it", `route: {cases: [{when: "true", to: elsewhere}]}`, `
elsewhere}]} ^ there is no topic elsewhere; declare it under topics`},
		{"no case", `route: {cases: []}`, `
cases: []} ^ a route needs a case; cases: [{when: EXPRESSION, to: TOPIC}]`},
		{"misspelled type", `route: {cases: [{when: type == 'OrderCrated', to: shop.orders}]}`, `
type == 'Ord ^ no event can match this case: for every type, it is false or an earlier case matches first; remove the case, or check for a misspelled type`},
		{"unreachable", `route: {cases: [{when: type != 'X', to: shop.orders}, {when: type == 'OrderPaid', to: shop.large}]}`, `
type == 'Ord ^ no event can match this case: for every type, it is false or an earlier case matches first; remove the case, or check for a misspelled type`},
		{"not a bool", `route: {on: [OrderCreated], cases: [{when: data.user_id, to: shop.orders}]}`, `
data.user_id ^ this is a string, but a route needs a bool`},
		{"dead letters", `route: {cases: [{when: type == 'OrderPaid', to: shop.dead_letters}]}`, `
shop.dead_le ^ shop.dead_letters cannot hold events: it already holds dead letters (22:18); use a separate topic for each`},
		{"a circle", `route: {cases: [{when: type == 'OrderPaid', to: shop.events}]}`, `
shop.events} ^ events would circulate forever: shop.events -> test, and back to shop.events; write to another topic`},
	})
}

// The targets of a type are only the topics that the route stage can choose for it. A
// topic with declared types is checked against exactly these.
func TestRouteTargetsOfATypeAreTheTopicsItCanReach(t *testing.T) {
	r := newRunner(t, `route: {cases: [{when: type.startsWith('Order'), to: shop.orders}, {when: type == 'UserCreated', to: shop.users}, {when: type == 'UserUpdated' && has(data.name), to: shop.large}]}`, nil)
	want := map[string]string{
		"shop.OrderCreated": "shop.orders", "shop.OrderPaid": "shop.orders", "shop.OrderShipped": "shop.orders",
		"shop.UserCreated": "shop.users", "shop.UserUpdated": "shop.enriched shop.large", "shop.UserDeleted": "shop.enriched", "shop.Sampled": "shop.enriched",
	}
	for i, s := range r.plan.Types {
		got := ""
		for _, topic := range r.plan.Targets[i] {
			got += " " + topic.Name
		}
		if got != " "+want[s.Name()] {
			t.Errorf("%s goes to%s, want %s", s.Name(), got, want[s.Name()])
		}
	}
}

func TestRouteAllocatesNothing(t *testing.T) {
	for _, match := range []string{"first", "all"} {
		r := newRunner(t, `route: {on: [OrderCreated], match: `+match+`, cases: [{when: data.total_amount > 10.0, to: shop.large}, {when: data.user_id == 'u-1', to: shop.users}]}`, nil)
		if n := allocations(t, r, order); n != 0 {
			t.Errorf("match %s: %v allocations per event, want 0", match, n)
		}
	}
}
