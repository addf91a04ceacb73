package server

import (
	"io"
	"net/http"
	"time"
)

// Deadlines of a request. An answer may take any time, as feeds do, but each write must
// end: a client that does not read would keep its handler for ever.
const (
	headerTimeout = 5 * time.Second
	bodyTimeout   = 30 * time.Second // for all of a body
	writeTimeout  = 30 * time.Second // for each write
	idleTimeout   = time.Minute
	maxHeader     = 16 << 10 // bytes
)

// pace sets the deadlines of requests and limits their bodies. limit returns the most
// bytes of a request's body.
func pace(limit func(*http.Request) int64, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := &pacedWriter{ResponseWriter: w, control: http.NewResponseController(w)}
		p.extend()
		defer p.extend() // for what the server still has to send
		if r.Body != nil && r.Body != http.NoBody {
			if coding := r.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
				WriteProblem(p, http.StatusUnsupportedMediaType, "the body has the encoding %.100q: send it without one", coding)
				return
			}
			most := limit(r)
			if r.ContentLength > most {
				WriteProblem(p, http.StatusRequestEntityTooLarge, "%s %s takes a body of at most %d bytes", r.Method, r.URL.Path, most)
				return
			}
			_ = p.control.SetReadDeadline(time.Now().Add(bodyTimeout)) // not supported by the writers of tests
			r.Body = &pacedBody{ReadCloser: http.MaxBytesReader(w, r.Body, most), control: p.control}
		}
		next.ServeHTTP(p, r)
	})
}

// pacedBody ends the deadline with the body: the server watches the connection for as long
// as the request takes, and an expired deadline would cancel it.
type pacedBody struct {
	io.ReadCloser
	control *http.ResponseController
}

func (b *pacedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// pacedWriter gives each write a deadline. The handler's goroutine owns it.
type pacedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	until   time.Time // the deadline
}

// extend moves the deadline if less than half of the time is left.
func (p *pacedWriter) extend() {
	now := time.Now()
	if p.until.Sub(now) > writeTimeout/2 {
		return
	}
	p.until = now.Add(writeTimeout)
	_ = p.control.SetWriteDeadline(p.until) // not supported by the writers of tests
}

func (p *pacedWriter) Write(b []byte) (int, error) {
	p.extend()
	return p.ResponseWriter.Write(b)
}

// Flush implements [http.Flusher].
func (p *pacedWriter) Flush() {
	p.extend()
	_ = p.control.Flush() // not supported by every writer
}

// FlushError is Flush for [http.ResponseController].
func (p *pacedWriter) FlushError() error {
	p.extend()
	return p.control.Flush()
}

// Unwrap is for [http.ResponseController].
func (p *pacedWriter) Unwrap() http.ResponseWriter { return p.ResponseWriter }
