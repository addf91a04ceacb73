package producer

import (
	"errors"
	"io"

	"golang.org/x/sync/semaphore"
)

// budget limits the memory for the bodies of all requests together. Several goroutines can
// use it.
type budget struct{ bytes *semaphore.Weighted }

// firstRead is the memory that a body gets at first, in bytes. It doubles as the body
// grows, so a client that announces a large body and sends nothing takes little.
const firstRead = 4 << 10

// errBudget means that the bodies of other requests take all memory.
var errBudget = errors.New("the bodies of other requests take all memory")

func newBudget(bytes int64) *budget { return &budget{semaphore.NewWeighted(bytes)} }

// read reads a body. The caller must call done when it no longer needs the body; also
// after an error, which is that of the reader, or errBudget.
func (b *budget) read(from io.Reader) (body []byte, done func(), err error) {
	var taken int64
	done = func() { b.bytes.Release(taken) }
	for size := int64(firstRead); ; size *= 2 {
		// While the body moves to the larger memory, both exist.
		if !b.bytes.TryAcquire(size) {
			return nil, done, errBudget
		}
		taken += size
		larger := make([]byte, len(body), size)
		copy(larger, body)
		b.bytes.Release(taken - size)
		taken, body = size, larger
		for len(body) < cap(body) {
			n, err := from.Read(body[len(body):cap(body)])
			body = body[:len(body)+n]
			switch {
			case errors.Is(err, io.EOF):
				return body, done, nil
			case err != nil:
				return nil, done, err
			}
		}
	}
}
