package wording

import "testing"

func TestSnake(t *testing.T) {
	for name, want := range map[string][2]string{ // letter by letter, and with capitals together
		"OrderCreated": {"order_created", "order_created"}, "HTTPCall": {"h_t_t_p_call", "http_call"}, "HTTPRequestV2": {"h_t_t_p_request_v2", "http_request_v2"},
		"Order_Created": {"order_created", "order_created"}, "orders": {"orders", "orders"}, "ID": {"i_d", "id"}, "": {"", ""},
	} {
		if got := [2]string{Snake(name, false), Snake(name, true)}; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
