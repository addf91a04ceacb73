package nearest

import (
	"testing"

	"pgregory.net/rapid"
)

func TestNameFindsMisspelledNames(t *testing.T) {
	known := []string{"amount", "customer_id", "id", "timestamp"}
	for given, want := range map[string]string{
		"amuont": "amount", "Amount": "amount", "amounts": "amount", "customerid": "customer_id", "costumer_id": "customer_id",
		"timestmp": "timestamp", "ids": "id", "total": "", "x": "", "": "", "customer": "",
	} {
		if got := Name(given, known); got != want {
			t.Errorf("%q is %q, want %q", given, got, want)
		}
	}
}

func TestDistanceIsAMetricUpToItsLimit(t *testing.T) {
	word := rapid.StringOfN(rapid.RuneFrom([]rune("abc")), 0, 8, -1)
	rapid.Check(t, func(t *rapid.T) {
		a, b := word.Draw(t, "a"), word.Draw(t, "b")
		limit := rapid.IntRange(1, 20).Draw(t, "limit")
		d := Distance(a, b, 20)
		if d != Distance(b, a, 20) || (d == 0) != (a == b) || d > max(len(a), len(b)) {
			t.Fatalf("%q to %q: %d, back: %d", a, b, d, Distance(b, a, 20))
		}
		if got := Distance(a, b, limit); got != min(d, limit) {
			t.Fatalf("%q to %q is %d; with the limit %d, it is %d", a, b, d, limit, got)
		}
		if edited := a + "x"; Distance(a, edited, 20) != 1 {
			t.Fatalf("%q to %q is not 1", a, edited)
		}
	})
}
