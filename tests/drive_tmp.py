import sys, pathlib, shutil, time
if __name__=="__main__":
    from shoal.testing import world, preload
    from tests.workloads.parallel.test_exact_shapes import run, whole, np, STEPS
    import tests.workloads.parallel.test_exact_shapes as T
    import torch; torch.set_num_threads(1)
    d=pathlib.Path("/tmp/w/exact/drive"); shutil.rmtree(d,ignore_errors=True); d.mkdir()
    shapes=eval(sys.argv[2]); prec=sys.argv[1]
    with world(4) as four:
        four.backend="gloo"
        first=None
        for i,(w,p) in enumerate(shapes):
            t=time.time()
            try: found=run(four,d/str(i),w,p,precision=prec)
            except Exception as e:
                print(w,p,"FAILED",str(e)[-1500:]); continue
            a=whole([x.state for x in found])
            print(w,p,round(time.time()-t,1),"s",{k:v for k,v in found[0].metrics.items() if k in("loss","grad_norm","max_violation")},flush=True)
            if first is None: first=a; g=found[0].guard; b=found[0].biases
            else:
                bad={n:(int((a[n]!=first[n]).sum()),a[n].size) for n in a if not np.array_equal(a[n],first[n])}
                print("   differ:",len(bad),"of",len(a),dict(list(bad.items())[:12]), found[0].guard==g, np.array_equal(found[0].biases,b),flush=True)
