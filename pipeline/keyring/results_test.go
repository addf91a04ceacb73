package keyring_test

import (
	"context"
	"errors"
	"testing"

	"millrace/pipeline/keyring"
)

func TestWaitReturnsTheFirstErrorOrTheMissingResults(t *testing.T) {
	first, second := errors.New("first"), errors.New("second")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx     context.Context
		open    int
		results []error
		want    string
	}{
		"no writes":              {t.Context(), 0, nil, ""},
		"all acknowledged":       {t.Context(), 2, []error{nil, nil}, ""},
		"failures":               {t.Context(), 3, []error{nil, first, second}, "first"},
		"missing results":        {ended, 3, []error{nil}, "2 records without an answer"},
		"a failure, one missing": {ended, 2, []error{first}, "first"},
		"complete after the end": {ended, 1, []error{nil}, ""},
	} {
		r := keyring.NewResults(c.open)
		for _, err := range c.results {
			r.Add(err)
		}
		got := ""
		if err := r.Wait(c.ctx); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
