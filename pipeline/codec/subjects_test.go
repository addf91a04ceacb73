package codec

import (
	"errors"
	"net/http"
	"strings"
	"testing"
)

func TestSubjectsAreThoseOfConfluentsStrategies(t *testing.T) {
	s := mustParse(t, orderSchema)
	for names, want := range map[SubjectNames]string{
		"": "orders-shop.Order", TopicRecordName: "orders-shop.Order", TopicName: "orders-value", RecordName: "shop.Order",
	} {
		if got := names.Value("orders", s); got != want {
			t.Errorf("%q gives %s, want %s", names, got, want)
		}
	}
	if got := KeySubject("orders"); got != "orders-key" {
		t.Error(got)
	}
}

func TestARefusalToRegisterNamesTheSubject(t *testing.T) {
	for status, body := range map[int]map[string]any{
		401: {"error_code": 401, "message": "Unauthorized"},
		403: {"error_code": 40301, "message": "User is denied operation Write on Subject: s"},
		422: {"error_code": 42205, "message": "Subject s is in read-only mode"},
	} {
		r, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) { reply(w, status, body) })
		_, err := r.Register(t.Context(), "s", mustParse(t, orderSchema))
		level := r.SetCompatibility(t.Context(), "s", "FULL")
		for _, err := range []error{err, level} {
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "subject s") || !strings.Contains(err.Error(), body["message"].(string)) {
				t.Errorf("%d: %v", status, err)
			}
		}
	}
}

// Registries before version 7 of Confluent's give no reasons with a 409.
func TestAnIncompatibleSchemaIsShownWithTheReasonsOfTheRegistry(t *testing.T) {
	r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
		if strings.HasPrefix(req.URL.Path, "/compatibility/") {
			reply(w, 200, map[string]any{"is_compatible": false, "messages": []string{"READER_FIELD_MISSING_DEFAULT_VALUE: note"}})
			return
		}
		reply(w, 409, map[string]any{"error_code": 409, "message": "Schema being registered is incompatible with an earlier schema"})
	})
	_, err := r.Register(t.Context(), "s", mustParse(t, orderSchema))
	if !errors.Is(err, ErrIncompatible) || !strings.Contains(err.Error(), "READER_FIELD_MISSING_DEFAULT_VALUE: note") {
		t.Error(err)
	}
}
