package query

import (
	"net/http"
	"runtime"
	"sync"
)

// maxTurns returns the number of answers of many aggregates or events that are made at the
// same time. Each takes memory and a core; the others wait.
func maxTurns() int { return 2 * runtime.GOMAXPROCS(0) }

// turn waits until the request may make a large answer. The turn ends with the first write of
// the answer, so a client that does not read does not keep it, or when the caller calls end.
// end is nil if the client is gone.
func (a *api) turn(w http.ResponseWriter, r *http.Request) (_ http.ResponseWriter, end func()) {
	select {
	case a.turns <- struct{}{}:
	case <-r.Context().Done():
		return w, nil
	}
	end = sync.OnceFunc(func() { <-a.turns })
	return &turnWriter{w, end}, end
}

// turnWriter ends a turn with the first write.
type turnWriter struct {
	http.ResponseWriter
	end func()
}

func (t *turnWriter) Write(b []byte) (int, error) {
	t.end()
	return t.ResponseWriter.Write(b)
}

// Unwrap is for [http.ResponseController].
func (t *turnWriter) Unwrap() http.ResponseWriter { return t.ResponseWriter }
